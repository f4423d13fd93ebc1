"""What can be done with stored reinforcements."""
