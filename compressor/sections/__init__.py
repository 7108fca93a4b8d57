"""The sections of a recipe as strict pydantic models; `compressor.recipe` puts them together. No torch here."""
