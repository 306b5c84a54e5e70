"""The operations of the MIL, by subject, and the table of them."""
