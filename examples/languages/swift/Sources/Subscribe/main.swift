import Foundation
import LDSwiftEventSource

/// Prints the events of a stream. LDSwiftEventSource reconnects and resumes.
final class Printer: EventHandler {
    let ended = DispatchSemaphore(value: 0)

    func onOpened() {}
    func onClosed() {}
    func onComment(comment: String) {}

    func onMessage(eventType: String, messageEvent: MessageEvent) {
        switch eventType {
        case "relay.gap": print("missed events: \(messageEvent.data)")
        case "relay.end": ended.signal()
        default: print(eventType, messageEvent.lastEventId, messageEvent.data)
        }
    }

    func onError(error: Error) {
        FileHandle.standardError.write(Data("\(error)\n".utf8))
    }
}

let printer = Printer()
var config = EventSource.Config(handler: printer, url: URL(string: CommandLine.arguments[1])!)
config.headers = ["Authorization": "Bearer \(ProcessInfo.processInfo.environment["TOKEN"] ?? "")"]
config.idleTimeout = 45 // three heartbeats
config.connectionErrorHandler = { error in
    guard let status = (error as? UnsuccessfulResponseError)?.responseCode else { return .proceed }
    if status == 429 || status >= 500 { return .proceed }
    printer.ended.signal() // 204: all topics have ended. Any other status is final too.
    return .shutdown
}
let source = EventSource(config: config)
source.start()
printer.ended.wait()
source.stop()
