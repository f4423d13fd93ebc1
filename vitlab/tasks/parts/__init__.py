"""What the tasks are made of: metrics, losses, figures and pages, a file an idea."""
