"""Before ids: sources of documents, the documents of a corpus, tokenizers."""
