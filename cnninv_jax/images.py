"""Grey-scale, structural similarity and relative error of pictures, as pure functions."""
