"""What a federation is, apart from the network; free of Flower."""
