"""hospital.toml as `init` writes it, with a comment at each key, and as `join` changes its [coordinator] section."""

from __future__ import annotations

import json
import re

HOSPITAL_TOML = """\
# This hospital. Nothing that arrives from outside can widen what stands here.
# Changes count from the next `wardround hospital up`.

[hospital]
name = "{name}"                  # how the federation calls this hospital
declared_patients = {patients}       # a round PUBLIC number near the cohort's size, never the exact one

[device]
compute = "auto"                 # auto (CUDA when it is there), cpu or cuda
threads = 0                      # CPU threads of the training; 0: as many as cores

[budget]
epsilon = 10.0                   # the most that each patient's privacy may cost, over all runs and coordinators
delta = 0.0                      # 0: a value just below 1/(10 declared_patients)
# epsilon_per_round = 1.0        # the most that one round may cost when it is looked at alone

[policy]
least_noise_multiplier = 0.3     # the weakest noise that is accepted, in units of the clip norm
greatest_epsilon = 100.0         # of one run; [budget] bounds all of them together
least_clip_norm = 0.001          # the clip norm: the most that one patient may move a sum before noise is added
greatest_clip_norm = 10.0
least_patients = 20              # a smaller cohort takes no part
greatest_rounds = 10_000         # of one run
# questions = ["statistics", "gradient"]  # only these; those that come with wardround, where nothing is listed
# algorithms = ["fedavg", "reptile"]  # only these; those that come with wardround, where nothing is listed
greatest_gradients_per_round = 100  # training answers of one round
greatest_local_steps = 100       # training steps of one round, also those within an episode
greatest_local_batches = 100     # minibatches of an episode
least_local_learning_rate = 1e-6
greatest_local_learning_rate = 100.0
greatest_proximal = 100.0        # mu of fedprox, pull of mr-mtl
least_regularization = 1e-4      # of ridge and svm
greatest_regularization = 1e4
greatest_sampling_rate = 1.0     # 1: a step may use everybody
greatest_images_per_patient = 16 # of each sampled patient, a step
greatest_patients_per_episode = 200  # on average
greatest_episodes = 10_000       # of one round
least_support_share = 0.05       # how likely each patient of an episode is in its support
greatest_support_share = 0.95
families = ["encoder-head", "conv4", "logistic", "mlp", "projection"]  # models that may be trained
greatest_parameters = 5_000_000
greatest_features = 40000        # columns of a table, numbers that an encoder gives
greatest_embedding = 1024
greatest_width = 1024            # of conv4 and mlp
greatest_encoder_bytes = 536_870_912  # of an encoder file that the consortium brings
greatest_image_size_px = 512
greatest_variants = 16           # of an image, by augment
greatest_depth = 256             # slices of a volume
greatest_inputs = 8              # of one patient
greatest_cells = 16_384          # of an image, where each is an example: masks and points
greatest_cells_per_image = 1024  # of these, drawn in a step
greatest_classes = 100
labels = []                      # label codes that may be asked about; none listed: every one
greatest_magnitude = 1e6         # of the numbers that arrive: parameters, feature scaling and its inverse
greatest_answer_bytes = 33_554_432  # of the longest answer
reply_grid_s = 0.0               # above 0: replies leave only whole multiples of it after their requests came

[burned_in]
text = "quarantine"              # what becomes of images with text in their pixels: quarantine, blacken, crop or ignore
# checked = ["US", "SC", "XA", "multi-frame"]  # what is looked at for it; more, and pictures, where nothing is listed

[coordinator]
address = ""                     # host:port; `wardround hospital join` writes it
ca_file = "coordinator-ca.pem"   # the only certificate authority that is believed, relative to this file
ca_sha256 = ""                   # of that file; `join` writes it, and another file is then refused
known_as = ""                    # its name in the ledger since it changed its address or CA; `join` writes it

[select]                         # which DICOM images count; patterns with * and ?, "!" takes out again, [] takes all
sop_classes = []                 # names or UIDs
modalities = []                  # such as ["CT", "MR"]
image_types = []                 # of the whole text, such as ["ORIGINAL/PRIMARY/*"]
views = []                       # View Position
body_parts = []
series = []                      # descriptions, such as ["*t1*", "!*scout*"]
least_slices = 0                 # images of a series in the folder
greatest_slices = 0              # 0: any number
allow = []                       # what is left out otherwise, by name: see the guide for hospital IT

[patients]
issuer = ""                      # Issuer of Patient ID of your own patients, where files name one
allow_placeholders = false       # true: a PatientID such as ANONYMOUS is one patient, who cannot withdraw

[pacs]                           # where `wardround hospital pull` fetches studies from: url, or address
url = ""                         # of its DICOMweb service, such as https://pacs.example/dicom-web
address = ""                     # host:port of its DIMSE service
called = "ANY-SCP"               # its AE title, and ours
calling = "WARDROUND"
retrieve = "get"                 # get (C-GET), or move (C-MOVE): the PACS then connects to `listen`
listen = ""                      # host:port here, under our AE title
tls = false                      # of DIMSE
ca_file = ""                     # its certificate authority; empty: those of this machine
certificate_file = ""            # ours, where it asks for one; and the key, mode 0600
key_file = ""
credentials_file = ""            # a TOML file of mode 0600 with username and password, or token
hours = ""                       # when it may be asked, such as 20:00-06:00
megabits_per_second = 0.0        # at most; 0: as it comes
connect_timeout_s = 10.0
read_timeout_s = 60.0            # 64 kB, or the end of an answer, arrive in each such time
attempts = 5                     # for what is not answered, or badly

[serve]                          # `wardround hospital serve` predicts for new studies; results go back to [pacs]
on = false                       # false: nothing is done
models = []                      # adapted models that predict, by name
write = ["sr"]                   # sr (report), seg (of masks), heatmap (pictures), fhir (JSON, which stays here)
arrive = "poll"                  # poll: the PACS is asked for new studies; listen: they are sent
listen = ""                      # host:port here, for studies that are sent
title = "WARDROUND"              # our AE title there
callers = []                     # AE titles that may send; nobody else may
associations = 4                 # at once, of one address
days = 1                         # a study is new on its Study Date, and so many days after it
every_s = 30.0                   # how often the PACS is asked
settle_s = 60.0                  # a study is looked at when nothing was added to it for so long
most_waiting = 1000              # studies that are not done; then nothing more is taken
gigabytes = 20.0                 # of all that lies in HOME/serve; then nothing more is taken
greatest_study_mb = 4000
greatest_objects = 5000          # of one study
intended_use = "Research only: to be compared with a reading by a radiologist, never to replace it."

[operations]                     # how the daemon is watched: see the guide for hospital IT
log_format = "text"              # of hospital.log: text, or json (an object a line)
metrics_port = 0                 # of 127.0.0.1, for Prometheus: public numbers only; 0: off
hook = []                        # a program by its absolute path, and arguments: told what waits for a person
hook_timeout_s = 30.0            # then it is killed
"""


def with_coordinator(text: str, address: str, ca_file: str, ca_sha256: str, known_as: str) -> str:
    """hospital.toml with another coordinator; every other line, comments included, stays as it is."""
    values = {"address": address, "ca_file": ca_file, "ca_sha256": ca_sha256, "known_as": known_as}
    for key, value in values.items():
        text = with_setting(text, "coordinator", key, value)
    return text


def with_setting(text: str, section: str, key: str, value: str | float) -> str:
    """hospital.toml with another value in [section], which is added at the end where it is missing."""
    literal = repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    lines = text.splitlines()
    try:
        start = next(i for i, line in enumerate(lines) if re.match(rf"\s*\[\s*{section}\s*\]", line)) + 1
    except StopIteration:
        lines += ["", f"[{section}]"]
        start = len(lines)
    end = next((i for i in range(start, len(lines)) if re.match(r"\s*\[", lines[i])), len(lines))
    for i in range(start, end):
        found = re.match(rf"\s*{key}\s*=\s*(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s#\"']+)(.*)$", lines[i])
        if found:
            lines[i] = f"{key} = {literal}{found.group(2)}"
            break
    else:
        lines.insert(start, f"{key} = {literal}")
    return "\n".join(lines) + "\n"
