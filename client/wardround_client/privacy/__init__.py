"""The hospital's side of the promise: mechanism, accountant, ledger and the cohort that answers (docs/privacy.md)."""
