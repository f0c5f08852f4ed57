"""Questions with one image, such as those of PathMMU."""
