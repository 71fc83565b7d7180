"""The sources turn input into published events. Each source owns one kind of input. None touches a stream."""
