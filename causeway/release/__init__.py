"""Release keys and what is signed with them, on a person's machine."""
