"""Where rows come from: files, folders of documents, URLs, databases, the hub."""
