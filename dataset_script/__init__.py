"""Everything that makes rows of Scale-VQA and writes them."""
