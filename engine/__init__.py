"""The machinery behind both programs. Nothing in here knows them, or the method."""
