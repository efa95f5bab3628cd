"""Networks, built from diffusers' blocks; none of them knows Lightning."""
