"""How bright each tissue of a knee phantom is, in [0, 1], by contrast."""

from sslmed_dist.data.phantom.canvas import Point

CONTRASTS = ("pd", "t1", "fs")
# Signal by plane of the contrast "pd": axial fat-suppressed, coronal and sagittal proton-density-like.
SIGNALS: dict[str, Point] = {
    "skin": (0.40, 0.45, 0.45),
    "fat": (0.34, 0.86, 0.80),
    "deep fat": (0.30, 0.76, 0.70),
    "muscle": (0.40, 0.36, 0.34),
    "vessel": (0.80, 0.16, 0.14),
    "tendon": (0.08, 0.10, 0.09),
    "meniscus": (0.10, 0.11, 0.10),
    "cartilage": (0.62, 0.52, 0.56),
    "cortex": (0.06, 0.07, 0.07),
    "marrow": (0.47, 0.70, 0.62),
    "fluid": (0.97, 0.86, 0.92),
    "torn": (0.70, 0.58, 0.62),
    "oedema": (0.80, 0.48, 0.42),
}
# Signal of the contrast "t1", the same in every plane: fat and marrow are bright, fluid and oedema dark.
SIGNALS_T1: dict[str, float] = {
    "skin": 0.45,
    "fat": 0.92,
    "deep fat": 0.84,
    "muscle": 0.36,
    "vessel": 0.16,
    "tendon": 0.09,
    "meniscus": 0.12,
    "cartilage": 0.44,
    "cortex": 0.07,
    "marrow": 0.82,
    "fluid": 0.22,
    "torn": 0.34,
    "oedema": 0.40,
}
# Signal of the contrast "fs", the same in every plane: T2 with the fat suppressed, so that fluid and oedema are what is
# bright.
SIGNALS_FS: dict[str, float] = {
    "skin": 0.35,
    "fat": 0.22,
    "deep fat": 0.20,
    "muscle": 0.34,
    "vessel": 0.85,
    "tendon": 0.06,
    "meniscus": 0.08,
    "cartilage": 0.50,
    "cortex": 0.05,
    "marrow": 0.18,
    "fluid": 0.95,
    "torn": 0.70,
    "oedema": 0.75,
}
