"""What objects are: one typed, documented definition of every kind that Stead serves, and the register of them."""
