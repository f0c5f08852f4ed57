"""The pipeline on phantom captions: input, a scripted double of the strong roles, two designs side by side."""
