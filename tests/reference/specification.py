"""The register: every numbered sentence of docs/privacy-specification.md -> the tests that fail if it is not true."""

from __future__ import annotations

_SETTINGS = "tests/client/consent/test_policy_covers_every_setting.py::test_"
_CLIENT, _PRIVACY, _HOSTILE, _REFERENCE = "tests/client/", "tests/client/privacy/", "tests/hostile/", "tests/reference/"
_ALONE = _PRIVACY + "test_alone.py::test_"
_ANSWERS = _PRIVACY + "test_answers.py::test_"
_AUDIT = _CLIENT + "audit/test_audit.py::test_"
_CLI_LEDGER = _CLIENT + "commands/test_ledger.py::test_"
_COHORT = _PRIVACY + "test_cohort.py::test_"
_DELTA = _HOSTILE + "test_nothing_beside_the_delta.py::test_"
_DRAWS = _PRIVACY + "test_draws.py::test_"
_ELEMENTARY = "tests/shared/test_elementary.py::test_"
_EPISODES = _PRIVACY + "test_episodes.py::test_"
_FAULTS = _PRIVACY + "test_ledger_faults.py::test_"
_LEDGER = _PRIVACY + "test_ledger.py::test_"
_MEMBERSHIP = "tests/simulation/test_membership.py::test_"
_MECHANISM = _PRIVACY + "test_mechanism.py::test_"
_NO_ROAD = _PRIVACY + "test_no_other_road.py::test_"
_NO_SEED = _PRIVACY + "test_no_seed.py::test_"
_OUTSIDE = _HOSTILE + "test_reachable_from_outside.py::test_"
_PROMISE = _REFERENCE + "test_promise.py::test_"
_ROUNDS = _HOSTILE + "test_hostile_rounds.py::test_"
_SCHEDULES = _REFERENCE + "test_accounting_schedules.py::test_"
_SENSITIVITY = _PRIVACY + "test_sensitivity.py::test_"
_TEXTS = _HOSTILE + "test_error_texts_stay.py::test_"
_WALL = _HOSTILE + "test_wall.py::test_"
_SIEGE = _HOSTILE + "test_hostile_coordinator.py::test_"

_BOUNDED = _SENSITIVITY + "a_patient_who_leaves_moves_an_answer_by_no_more_than_its_noise_is_made_for"
_BLOCKS = _SENSITIVITY + "no_patient_s_block_is_longer_than_one"
_SOAK = "tests/soak/test_soak.py::test_kills_at_random_moments_lose_no_epsilon_and_release_no_second_noise"

TESTS: dict[str, tuple[str, ...]] = {
    # The promise
    "P1": (
        _AUDIT + "the_bound_of_the_whole_run_is_near_the_claim",
        _AUDIT + "honest_code_passes_the_whole_audit",
        _LEDGER + "the_budget_holds_over_all_runs_and_a_refusal_costs_nothing",
        _DELTA + "before_the_noise_nothing_private_leaves_and_after_it_nothing_private_enters",
        _ROUNDS + "new_run_names_of_an_approved_federation_are_bounded_by_the_total_budget",
    ),
    "P2": (
        _SENSITIVITY + "a_patient_whose_number_stands_in_many_rows_is_one_patient",
        _CLIENT + "intake/test_ingest.py::test_a_folder_becomes_a_cohort",
        _CLIENT + "intake/test_ingest_table.py::test_rows_are_used_or_quarantined_by_column",
    ),
    "P3": (_SCHEDULES + "our_epsilon_is_never_below_the_oracle_s_and_hardly_above_for_both_neighbours", _BOUNDED),
    "P4": (
        _PROMISE + "delta_is_just_below_one_tenth_of_a_declared_patient",
        _PROMISE + "a_hospital_s_own_delta_is_taken",
    ),
    "P5": (_PROMISE + "a_price_knows_nothing_of_the_other_hospitals",),
    "P6": (_PROMISE + "a_hospital_s_wheel_holds_no_way_to_answer_without_noise",),
    # One step
    "P7": (
        _DRAWS + "patients_are_sampled_independently_of_each_other",
        _DRAWS + "the_rate_is_met_and_the_size_is_binomial",
        _MECHANISM + "a_poisson_sample_holds_each_patient_at_most_once",
        "tests/shared/test_accountant.py::test_more_patients_a_step_than_declared_means_everyone",
    ),
    "P8": (
        _PROMISE + "hospitals_that_differ_in_their_patients_alone_look_alike",
        _ANSWERS + "no_denominator_moves_with_the_true_number_of_patients",
        _DELTA + "the_ledger_is_the_same_whatever_the_cohort",
    ),
    "P9": (
        _MECHANISM + "at_most_m_different_images_of_a_patient",
        _MECHANISM + "half_of_the_cells_show_something_and_all_of_a_kind_are_drawn_equally_often",
        _PRIVACY + "test_alone_cells.py::test_half_of_a_patient_s_cells_show_something_and_all_are_its_own",
        _DRAWS + "every_subset_of_a_patients_images_is_equally_likely",
        _PROMISE + "the_default_is_one_image_of_each_drawn_patient",
    ),
    "P10": (
        _BOUNDED,
        _COHORT + "one_patient_moves_the_sum_of_gradients_by_at_most_c",
        _COHORT + "a_broken_image_leaves_every_other_patient_as_it_is",
    ),
    "P11": (
        _ANSWERS + "the_noise_has_the_standard_deviation_of_its_sensitivity",
        _ANSWERS + "an_empty_sample_has_the_noise_of_a_full_one",
        _COHORT + "the_noise_is_sigma_times_c_over_the_public_denominator",
        _SENSITIVITY + "the_answer_is_the_noised_sum_over_a_public_number",
    ),
    "P12": (
        _ALONE + "a_clipped_vector_is_never_longer_than_c",
        _ALONE + "a_long_vector_is_not_longer_than_c_either",
        _ALONE + "sums_of_many_are_exact_in_any_order",
    ),
    "P13": (
        _COHORT + "the_sum_is_that_of_plain_autograd_patient_by_patient",
        _COHORT + "convolutional_gradients_are_right_in_every_memory_format",
        _ELEMENTARY + "gradients_are_those_of_autograd",
        _ELEMENTARY + "so_are_those_of_the_sums_that_ride_along",
    ),
    # A patient alone
    "P62": (
        _ALONE + "what_a_sum_of_gradients_loses_is_what_the_patient_adds_alone",
        _ALONE + "so_it_is_for_the_sums_that_a_metric_is_made_of",
        _ALONE + "a_patient_s_images_are_weighed_by_the_patient_s_own_number",
    ),
    "P63": (
        _ALONE + "nobody_s_block_changes_when_another_leaves",
        _ALONE + "nobody_s_episode_changes_when_a_patient_of_another_leaves",
    ),
    "P64": (
        _ELEMENTARY + "place_company_and_threads_change_no_bit",
        _ELEMENTARY + "functions_are_those_of_the_library",
        _ELEMENTARY + "a_sum_is_the_sum",
    ),
    "P65": (
        _ALONE + "an_image_is_encoded_alike_in_any_company",
        _ALONE + "a_deep_prediction_is_the_same_in_any_company",
    ),
    "P66": (
        _WALL + "what_cannot_be_computed_about_nobody_is_refused_before_it_costs_anything",
        _WALL + "a_machine_that_computes_other_bits_the_second_time_is_refused",
    ),
    "P67": (
        _ALONE + "a_part_that_raises_counts_as_nothing_and_nobody_else_notices",
        _ALONE + "an_image_that_cannot_be_encoded_or_predicted_is_a_row_of_its_own",
        _COHORT + "a_broken_image_leaves_every_other_patient_as_it_is",
    ),
    "P68": (_ALONE + "the_grid_of_contributions_is_public", _MECHANISM + "the_grid_does_not_follow_the_data"),
    "P69": (
        _CLIENT + "intake/test_ingest_stable.py::test_whoever_comes_or_goes_the_others_stay_as_they_are",
        _CLIENT + "intake/test_ingest_stable.py::test_whoever_leaves_a_table_the_others_stay_as_they_are",
    ),
    # The wall
    "P70": (_WALL + "whatever_function_raises_a_round_ends_in_one_reply",),
    "P71": (
        _WALL + "a_round_whose_process_died_is_answered_with_noise_alone",
        _WALL + "noise_alone_looks_like_an_answer",
    ),
    "P72": (_WALL + "what_post_processing_makes_infinite_is_a_public_number",),
    "P73": (
        _CLIENT
        + "consent/test_policy_covers_every_setting.py::test_every_setting_has_a_bound_or_a_reason_why_it_needs_none",
        _SETTINGS + "each_bound_refuses_by_its_name",
    ),
    "P74": (
        _CLIENT + "consent/test_footprint.py::test_an_estimate_is_above_what_an_episode_takes_and_not_far",
        _CLIENT + "consent/test_footprint.py::test_an_agreement_larger_than_the_machine_is_refused_by_name",
        _ALONE + "an_episode_has_at_most_a_public_number_of_patients_on_either_side",
    ),
    "P14": (_BOUNDED, _COHORT + "one_patient_moves_the_sum_of_gradients_by_at_most_c"),
    "P15": (
        _EPISODES + "a_patient_is_in_one_episode_at_most_and_there_on_one_side",
        _EPISODES + "every_sampled_patient_is_dealt_once",
        _EPISODES + "without_one_patient_everybody_else_is_dealt_as_before",
        _EPISODES + "neighbours_in_the_cohort_are_dealt_independently",
    ),
    "P16": (
        _BOUNDED,
        _SENSITIVITY + "an_episode_needs_the_whole_of_2c",
        _SENSITIVITY + "no_loss_however_hostile_moves_a_sum_further",
        _ANSWERS + "the_noise_has_the_standard_deviation_of_its_sensitivity",
    ),
    "P17": (_BLOCKS, _BOUNDED, _ANSWERS + "class_means_are_in_natural_units"),
    "P18": (_BLOCKS, _BOUNDED, _COHORT + "statistics_are_in_natural_units"),
    "P19": (_BLOCKS, _BOUNDED, _COHORT + "confusion_counts_patients"),
    "P75": (
        _SENSITIVITY + "no_sum_moves_further_whatever_a_question_says_of_itself",
        "tests/extend/test_question.py::test_a_federation_asks_it_and_the_ledger_is_charged_under_its_name",
        "tests/extend/test_question.py::test_a_hospital_that_does_not_list_it_refuses",
    ),
    "P20": (
        "tests/shared/test_meta.py::test_a_round_asks_exactly_what_was_priced",
        _COHORT + "asking_more_than_was_reserved_raises_before_anything_is_computed",
        _ANSWERS + "a_question_is_answered_with_what_was_reserved_and_no_oftener",
    ),
    "P21": (
        _NO_ROAD + "only_noised_answers_can_come_out_of_what_an_algorithm_is_given",
        _NO_ROAD + "no_algorithm_and_no_model_reaches_the_hospital_s_program",
        _NO_ROAD + "the_private_cohort_shows_the_questions_and_nothing_else",
        _PRIVACY + "test_post_processing.py::test_a_delta_is_made_of_the_noised_answers_alone",
    ),
    # Accounting
    "P22": (
        _SCHEDULES + "neither_the_order_nor_the_splitting_of_rows_changes_a_price",
        "tests/shared/test_accountant.py::test_impossible_rows_are_refused",
    ),
    "P23": (
        _SCHEDULES + "our_epsilon_is_never_below_the_oracle_s_and_hardly_above_for_both_neighbours",
        _REFERENCE + "test_accounting.py::test_the_gaussian_approximation_under_reports_and_is_not_ours",
        "tests/shared/test_accountant.py::test_composition_is_what_one_gaussian_of_all_costs",
    ),
    "P24": (
        "tests/shared/test_accountant.py::test_the_method_is_named_and_falls_back",
        "tests/shared/test_accountant.py::test_prv_failing_is_not_an_error",
        _SCHEDULES + "our_epsilon_is_never_below_the_oracle_s_and_hardly_above_for_both_neighbours",
    ),
    "P25": (
        _SCHEDULES + "our_epsilon_is_never_below_the_oracle_s_and_hardly_above_for_both_neighbours",
        _REFERENCE + "test_accounting.py::test_the_specification_s_example",
    ),
    "P26": (
        "tests/shared/test_accountant.py::test_a_run_costs_its_epsilon_and_no_more",
        "tests/shared/test_accountant.py::test_a_subsampled_run_costs_its_epsilon_and_no_more",
        "tests/shared/test_accountant_properties.py::test_a_run_of_every_algorithm_spends_its_epsilon",
    ),
    "P27": (
        _PROMISE + "what_was_forecast_is_what_the_ledger_holds",
        _CLIENT + "consent/test_forecast.py::test_a_second_run_is_priced_together_with_the_first",
    ),
    # Ledger
    "P28": (
        _FAULTS + "a_price_is_written_so_that_a_power_cut_does_not_lose_it",
        _LEDGER + "a_full_disk_spends_nothing_and_releases_nothing",
        _SOAK,
    ),
    "P29": (
        _LEDGER + "the_budget_holds_over_all_runs_and_a_refusal_costs_nothing",
        _LEDGER + "the_limit_of_one_round_holds",
        _CLIENT + "test_round.py::test_a_second_run_is_refused_when_the_budget_is_spent",
    ),
    "P30": (_SOAK, _FAULTS + "a_crash_leaves_a_torn_journal_and_every_entry"),
    "P31": (
        _CLIENT + "test_round.py::test_a_retry_gets_the_same_bytes_and_costs_nothing",
        _ROUNDS + "a_replayed_round_gets_the_same_bytes_and_costs_nothing",
        _SOAK,
    ),
    "P32": (
        _LEDGER + "a_retry_after_a_crash_uses_the_same_reservation",
        _LEDGER + "two_computations_of_one_round_release_one_reply",
        _WALL + "a_round_whose_process_died_is_answered_with_noise_alone",
        _WALL + "a_full_disk_keeps_the_one_reply_until_there_is_room",
        _SOAK,
    ),
    "P33": (
        _LEDGER + "a_full_disk_spends_nothing_and_releases_nothing",
        _FAULTS + "wherever_the_disk_fills_up_a_round_is_written_whole_or_not_at_all",
        _SOAK,
    ),
    "P34": (
        _LEDGER + "entries_can_neither_be_changed_nor_removed",
        _LEDGER + "tampering_is_found",
        _FAULTS + "a_change_in_any_column_is_told",
        _FAULTS + "a_flipped_byte_anywhere_in_the_file_is_told_or_changes_nothing",
        _LEDGER + "the_body_of_an_entry_is_what_a_reader_can_recompute",
    ),
    "P35": (
        _PRIVACY + "test_receipt.py::test_a_receipt_holds_all_that_the_specification_names",
        _CLIENT + "commands/test_ledger.py::test_a_csv_has_one_line_an_entry_and_every_field_of_the_receipt",
    ),
    "P36": (
        _FAULTS + "two_processes_together_never_pass_the_budget",
        _LEDGER + "threads_and_connections_share_one_budget",
        _ROUNDS + "new_run_names_of_an_approved_federation_are_bounded_by_the_total_budget",
    ),
    "P37": (
        _LEDGER + "another_request_for_the_same_round_is_a_replay",
        _LEDGER + "an_old_round_another_agreement_and_another_price_are_replays",
        _ROUNDS + "an_old_round_is_refused",
        _ROUNDS + "another_federation_under_the_same_run_name_is_refused",
    ),
    "P38": (
        _CLIENT
        + "commands/test_ledger.py::test_an_older_copy_of_the_file_does_not_hold_the_head_that_was_written_down",
        _FAULTS + "a_daemon_notices_an_older_copy_that_is_written_into_its_file",
        _HOSTILE + "test_one_life.py::test_an_older_copy_put_back_is_noticed",
    ),
    # Policy
    "P39": (
        _CLIENT + "consent/test_policy.py::test_each_rule_refuses_by_name",
        _ROUNDS + "an_agreement_past_the_policy_is_refused_by_name",
        _ROUNDS + "a_round_of_an_approval_that_the_policy_no_longer_permits_is_refused",
        _ROUNDS + "every_question_can_be_forbidden",
    ),
    "P40": (
        _ROUNDS + "a_round_of_an_agreement_that_was_not_approved_is_refused",
        _ROUNDS + "a_changed_approval_is_refused",
        _ROUNDS + "an_approval_pins_bundle_and_federation",
        _CLIENT + "test_round.py::test_an_approval_whose_file_was_changed_is_refused",
        _HOSTILE + "test_approval.py::test_an_approval_for_one_coordinator_is_none_for_another",
        _HOSTILE + "test_approval.py::test_a_run_more_than_approved_is_refused_before_anything_is_reserved",
    ),
    "P41": (
        _ROUNDS + "a_header_cannot_bring_a_setting",
        _PROMISE + "what_was_forecast_is_what_the_ledger_holds",
    ),
    "P42": (
        _CLIENT + "consent/test_policy.py::test_a_layer_that_mixes_patients_is_refused",
        _ROUNDS + "a_model_with_batch_norm_is_refused_at_approval_and_in_a_round",
    ),
    "P43": (
        _HOSTILE + "test_malformed_messages.py::test_a_mutated_message",
        _HOSTILE + "test_malformed_messages.py::test_a_crafted_message",
        _HOSTILE + "test_malformed_messages.py::test_a_message_of_more_than_the_limit_is_refused_unread",
        _ROUNDS + "a_theta_that_is_not_finite_is_refused",
        _ROUNDS + "a_theta_of_absurd_magnitude_is_refused_by_name",
        _SIEGE + "a_theta_of_2_gb_is_refused_by_name_and_never_held",
        _SIEGE + "random_answers_leave_the_node_up",
    ),
    "P44": (
        _SIEGE + "a_bundle_with_code_is_never_fetched_unpacked_or_imported",
        _SIEGE + "the_node_has_no_way_to_fetch_a_bundle",
        _SIEGE + "an_unknown_bundle_is_refused_by_name",
    ),
    "P45": (
        _ROUNDS + "an_exchanged_ca_file_is_refused_before_anything_connects",
        _CLIENT + "flower/test_node.py::test_a_wrong_ca_is_not_trusted",
        _OUTSIDE + "a_running_daemon_listens_on_nothing_but_its_owners_socket",
        _CLIENT + "service/test_control.py::test_only_the_owner_may_open_it",
    ),
    # What could leak beside the delta
    "P46": (
        _DELTA + "every_field_of_a_reply_is_named",
        _DELTA + "every_field_of_every_protobuf_that_the_node_sends_is_named",
        _DELTA + "all_but_the_noised_numbers_is_the_same_to_the_last_byte",
        _PROMISE + "hospitals_that_differ_in_their_patients_alone_look_alike",
    ),
    "P47": (
        _DELTA + "what_is_sent_has_the_same_sizes_and_counts_whatever_the_cohort",
        "tests/shared/test_wire.py::test_the_length_of_a_reply_tells_nothing",
        _HOSTILE + "test_malformed_messages.py::test_every_refusal_has_one_length_whatever_it_says",
    ),
    "P48": (
        _TEXTS + "an_exception_at_any_stage_leaves_nothing_of_its_text",
        _TEXTS + "an_exception_beyond_the_round_is_a_fixed_text_on_the_wire",
        _TEXTS + "a_cohort_that_cannot_be_opened_tells_neither_path_nor_host",
        _TEXTS + "the_refusals_numbers_are_public",
        _CLIENT + "test_round.py::test_a_crash_inside_a_round_stays_inside",
    ),
    "P49": (
        _OUTSIDE + "a_running_daemon_listens_on_nothing_but_its_owners_socket",
        _OUTSIDE + "the_owners_service_has_no_call_that_returns_data",
        _DELTA + "every_call_header_and_field_on_the_wire_is_named_and_every_table_row_is_real",
    ),
    "P50": (
        _NO_SEED + "an_answer_draws_from_the_system_and_from_nothing_else",
        _NO_SEED + "seeding_everything_repeats_no_answer",
        _NO_SEED + "a_seed_in_federation_toml_is_refused",
        _NO_SEED + "a_seed_in_a_message_is_refused",
        _DRAWS + "neither_a_seed_nor_a_fork_repeats_noise",
    ),
    "P51": (
        _DRAWS + "the_sum_is_rounded_to_the_public_grid_before_anything_sees_it",
        _MECHANISM + "what_leaves_lies_on_the_public_grid",
        _PROMISE + "each_normal_number_is_a_sum_of_two_draws",
    ),
    "P52": (
        _PROMISE + "a_class_prior_is_made_of_released_counts_and_of_nothing_else",
        _NO_ROAD + "the_loss_that_an_algorithm_is_given_is_made_of_public_numbers",
        _CLIENT + "consent/test_policy.py::test_a_frozen_encoder_may_hold_batch_norm_in_evaluation_mode_only",
    ),
    "P53": (
        _PROMISE + "what_was_forecast_is_what_the_ledger_holds",
        _DELTA + "before_the_noise_nothing_private_leaves_and_after_it_nothing_private_enters",
    ),
    "P54": ("tests/server/test_rounds.py::test_the_step_is_the_weighted_mean_of_the_deltas",),
    "P55": (_DELTA + "a_reply_grid_holds_a_reply_to_whole_multiples",),
    "P56": (
        _PROMISE + "whether_a_round_is_answered_does_not_depend_on_a_patient",
        _CLIENT + "test_presence.py::test_nobody_can_tell_from_an_answer_whether_a_patient_is_there",
        _CLIENT + "test_presence.py::test_noise_alone_answers_for_a_cohort_of_nobody_or_of_one",
        _SENSITIVITY + "nobody_and_one_patient_get_an_answer_like_everybody_else",
    ),
    # Withdrawal
    "P57": (
        _CLIENT + "commands/test_withdraw.py::test_a_patient_opts_out_between_two_rounds",
        _CLIENT + "commands/test_withdraw.py::test_who_withdraws_before_coming_never_comes",
        _CLIENT + "cohort/test_optout.py::test_a_warm_cohort_loses_exactly_the_patient",
        _CLIENT + "cohort/test_optout.py::test_the_intake_quarantines_who_withdrew",
    ),
    "P58": (
        _CLIENT + "cohort/test_optout.py::test_the_rounds_since_the_patient_came_are_named",
        _CLIENT + "cohort/test_optout.py::test_rounds_after_the_withdrawal_are_not",
        _CLIENT + "commands/test_withdraw.py::test_a_patient_opts_out_between_two_rounds",
    ),
    # Proof
    "P59": (_BOUNDED, _BLOCKS, _SENSITIVITY + "no_loss_however_hostile_moves_a_sum_further"),
    "P60": (
        _AUDIT + "the_audit_finds",
        _AUDIT + "the_audit_finds_where_patients_are_sampled",
        _AUDIT + "honest_code_passes_the_whole_audit",
        _CLIENT + "audit/test_bounds.py::test_a_true_claim_is_refuted_in_at_most_5_percent_of_audits",
    ),
    "P61": (
        _MEMBERSHIP + "under_epsilon_1_every_attack_stays_below_the_ceiling",
        _MEMBERSHIP + "the_finding_says_how_many_people_and_what_the_least_fpr_is",
        "tests/simulation/test_simulate_audit.py::test_the_report_shows_both_and_the_strangers_are_gone",
    ),
}
