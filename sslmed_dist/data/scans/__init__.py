"""One scan: DICOM or NIfTI, its place in mm, and back."""
