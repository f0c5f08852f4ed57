"""Release folders: Parquet files per config and split, and a dataset card that lists them."""
