"""From a hospital's files to one packed, patient-split array: scan -> sources -> preprocess -> packed."""
