"""Draw worlds (task, trained model, fault) and judge by machine what a scan says of them."""
