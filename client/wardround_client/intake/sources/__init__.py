"""Sources, one file each: `wardround_client.intake.source` says what a source is."""
