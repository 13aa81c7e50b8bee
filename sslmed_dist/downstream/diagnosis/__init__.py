"""What a diagnosis is worth: probabilities of examinations, ensembles over planes, measures, calibration, floors."""
