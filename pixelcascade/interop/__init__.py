"""Networks and weights of other projects, in and out."""
