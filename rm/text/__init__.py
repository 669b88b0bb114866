"""Text to token ids: chat templates, special tokens, and the pad token."""

from .pad_token import match_tokenizer
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer", "match_tokenizer"]
