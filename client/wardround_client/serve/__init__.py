"""New studies are predicted, and what is predicted goes back to the PACS that they came from.

- checks.py: what hospital.toml must say
- arrivals.py: which studies are new, by asking the PACS; fetching.py: their files
- receiver.py, listening.py, reception.py, received.py: they are sent: a process, its port, each object, and the folder
- queue.py: what is to be done, on disk: each study and model once
- models.py: the adapted models that predict
- study.py, predicted.py, answering.py: the files of one study, what a model predicts for it, and what comes of that
- report.py, pictures.py, fhir.py: that, as a structured report, segmentations and secondary captures, and FHIR
- results.py: their bytes, which stay until the PACS has said that it has them
- sending.py: a result on its way, as long as it may go there
- loop.py: a step at a time, each of which may be the last

A kill between any two steps loses nothing and doubles nothing: what is on the disk says which step comes next, a result
that goes to the PACS has the UID that follows from its study and model (`uids.py`), and is sent as the same bytes until
it is confirmed.
"""
