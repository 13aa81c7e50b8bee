"""What a training is at. No torch here: one who only watches needs none."""

STARTING, TRAINING, SAVING, MEASURING, ENDING = "starting", "training", "saving", "measuring", "ending"
