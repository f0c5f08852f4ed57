"""The release folder: Parquet files per config and split beside the card that names them."""
