"""The Flower app at the server: it asks the sites, screens what they answer, and keeps every round's average."""
