using System.Net;
using System.Net.Http.Headers;
using System.Net.ServerSentEvents;

// Prints the events of a stream: dotnet run URL. SseParser reads one connection, so this program reconnects and resumes.
using var client = new HttpClient { Timeout = Timeout.InfiniteTimeSpan };
var token = Environment.GetEnvironmentVariable("TOKEN");
string? lastEventId = null;
var attempts = 0;
while (true)
{
    try
    {
        using var request = new HttpRequestMessage(HttpMethod.Get, args[0]);
        request.Headers.Accept.ParseAdd("text/event-stream");
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", token);
        if (lastEventId is not null) request.Headers.TryAddWithoutValidation("Last-Event-ID", lastEventId);
        using var response = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
        if (response.StatusCode == HttpStatusCode.NoContent) return; // All topics have ended.
        response.EnsureSuccessStatusCode();
        await using var body = await response.Content.ReadAsStreamAsync();
        using var silence = new CancellationTokenSource();
        silence.CancelAfter(TimeSpan.FromSeconds(45)); // three heartbeats
        await foreach (var item in SseParser.Create(body).EnumerateAsync(silence.Token))
        {
            silence.CancelAfter(TimeSpan.FromSeconds(45));
            attempts = 0;
            lastEventId = item.EventId ?? lastEventId;
            if (item.EventType == "relay.end") return;
            if (item.EventType == "relay.gap") Console.WriteLine($"missed events: {item.Data}");
            else Console.WriteLine($"{item.EventType} {lastEventId} {item.Data}");
        }
    }
    catch (HttpRequestException error) when (error.StatusCode is null or HttpStatusCode.TooManyRequests or >= HttpStatusCode.InternalServerError)
    {
        Console.Error.WriteLine(error.Message);
    }
    catch (Exception error) when (error is IOException or OperationCanceledException)
    {
        Console.Error.WriteLine(error.Message);
    }
    attempts = Math.Min(attempts + 1, 6);
    await Task.Delay(Random.Shared.Next(100, Math.Min(30_000, 500 << attempts)));
}
