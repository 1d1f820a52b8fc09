"""From a hospital's files to its cohort: sources, DICOM, de-identification, pixels, labels."""
