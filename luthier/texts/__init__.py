"""What stages know about texts: languages, URLs, TF-IDF vectors, checksums, words of labels, planted secrets."""
