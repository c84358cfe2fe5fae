"""From the user's raw data to clean examples in train, validation and test, with every dropped row accounted for."""
