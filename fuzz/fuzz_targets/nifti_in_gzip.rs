#![no_main]
obelisk_fuzz::fuzz!(nifti_in_gzip);
