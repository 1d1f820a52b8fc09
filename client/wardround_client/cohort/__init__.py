"""The patients on disk and as a model sees them: the store, its writer, the opt-out register, encoded examples."""
