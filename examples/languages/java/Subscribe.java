import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.RetryDelayStrategy;
import com.launchdarkly.eventsource.StreamException;
import com.launchdarkly.eventsource.StreamHttpErrorException;
import java.net.URI;
import java.util.concurrent.TimeUnit;

/** Prints the events of a stream: java Subscribe.java URL. It reconnects and resumes. */
public final class Subscribe {
    public static void main(String[] arguments) throws StreamException {
        var connect = ConnectStrategy.http(URI.create(arguments[0]))
                .header("Authorization", "Bearer " + System.getenv("TOKEN"))
                .readTimeout(45, TimeUnit.SECONDS); // three heartbeats
        var delay = RetryDelayStrategy.defaultStrategy().maxDelay(5, TimeUnit.SECONDS);
        try (var source = new EventSource.Builder(connect).retryDelayStrategy(delay).build()) {
            while (true) {
                try {
                    MessageEvent event = source.readMessage();
                    switch (event.getEventName()) {
                        case "relay.gap" -> System.out.println("missed events: " + event.getData());
                        case "relay.end" -> {
                            return;
                        }
                        default -> System.out.println(
                                event.getEventName() + " " + source.getLastEventId() + " " + event.getData());
                    }
                } catch (StreamHttpErrorException error) {
                    if (error.getCode() != 429 && error.getCode() < 500) {
                        throw error;
                    }
                } catch (StreamException error) {
                    System.err.println(error); // The next read waits, and connects again.
                }
            }
        }
    }
}
