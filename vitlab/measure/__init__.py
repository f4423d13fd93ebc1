"""What a trained network is worth: accuracy, calibration, cost."""
