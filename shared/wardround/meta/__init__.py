"""What several meta-learners share (`wardround.algorithms`)."""
