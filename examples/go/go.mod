module example.org/relay-subscribe

go 1.21
