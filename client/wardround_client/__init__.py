"""The hospital's program: DICOM in, private answers out. Knows the shared library, never the coordinator's program."""
