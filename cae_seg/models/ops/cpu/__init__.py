"""What is only for CPUs."""
