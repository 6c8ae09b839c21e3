"""A look inside models: words by sense (`senses`) and inherited associations (`association`)."""
