"""Why encoders and data are as they are: measures and figures that no training needs."""
