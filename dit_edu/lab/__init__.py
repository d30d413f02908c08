"""What makes the book run, not what it teaches: data, training, metrics, weights, figures."""
