"""Sets of examinations of patients, and the episodes cut from them."""
