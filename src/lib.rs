//! OBELISK-Net (Heinrich, Oktay, Bouteldja 2019) as a portable GPU compute program.
