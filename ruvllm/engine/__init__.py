"""Running models: open, tokenise, generate, chat, embed, convert, quantise."""
