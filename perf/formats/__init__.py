"""Result files as other tools read them."""
