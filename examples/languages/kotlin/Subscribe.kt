import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import kotlin.system.exitProcess
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.Response
import okhttp3.sse.EventSource
import okhttp3.sse.EventSourceListener
import okhttp3.sse.EventSources

/** Follows a stream. okhttp-sse reads one connection, so this class reconnects and resumes. */
class Subscriber(private val url: String, private val token: String?) : EventSourceListener() {
    val ended = CountDownLatch(1)
    var failure: String? = null
    private val client = OkHttpClient.Builder().readTimeout(45, TimeUnit.SECONDS).build() // three heartbeats
    private val timer = Executors.newSingleThreadScheduledExecutor()
    private var lastEventId: String? = null
    private var attempts = 0

    fun connect() {
        val request = Request.Builder().url(url).header("Accept", "text/event-stream")
        token?.let { request.header("Authorization", "Bearer $it") }
        lastEventId?.let { request.header("Last-Event-ID", it) }
        EventSources.createFactory(client).newEventSource(request.build(), this)
    }

    override fun onEvent(eventSource: EventSource, id: String?, type: String?, data: String) {
        attempts = 0
        lastEventId = id ?: lastEventId
        when (type) {
            "relay.gap" -> println("missed events: $data")
            "relay.end" -> end(null)
            else -> println("${type ?: "message"} $lastEventId $data")
        }
    }

    override fun onClosed(eventSource: EventSource) = reconnect()

    override fun onFailure(eventSource: EventSource, t: Throwable?, response: Response?) {
        val status = response?.code
        when {
            status == 204 -> end(null) // All topics have ended.
            status == null || status == 200 || status == 429 || status >= 500 -> reconnect()
            else -> end("the server answered $status")
        }
    }

    private fun reconnect() {
        if (ended.count == 0L) return
        attempts += 1
        val mostMs = minOf(30_000L, 500L shl minOf(attempts, 6))
        timer.schedule(::connect, Random.nextLong(100, mostMs), TimeUnit.MILLISECONDS)
    }

    private fun end(reason: String?) {
        failure = reason
        ended.countDown()
    }
}

/** Prints the events of a stream. */
fun main(arguments: Array<String>) {
    val subscriber = Subscriber(arguments[0], System.getenv("TOKEN"))
    subscriber.connect()
    subscriber.ended.await()
    subscriber.failure?.let { System.err.println(it) }
    exitProcess(if (subscriber.failure == null) 0 else 1)
}
