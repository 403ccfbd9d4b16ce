#![no_main]
obelisk_fuzz::fuzz!(dicom);
