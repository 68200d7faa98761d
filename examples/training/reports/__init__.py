"""What trainings look like."""
